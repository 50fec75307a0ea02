"""Forecasters, rolling backtest, choice of the served model."""

"""The lease state machine and the policy: `decide(view) -> plan`."""

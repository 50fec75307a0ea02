"""Tables, models and figures."""

# ruff: noqa: E501
from __future__ import annotations

SESSIONS = {
    "pandas": (
        "import pandas as pd, numpy as np\ndf = pd.DataFrame({'a': np.arange(3000), 'b': np.linspace(0, 1, 3000), 's': ['n%d' % i for i in range(3000)], 'c': pd.Categorical(list('xyz') * 1000)}, index=pd.date_range('2020', periods=3000)); part = df[df.a > 5]; same = df; ser = df['a']; grp = df.groupby('c', observed=True); mi = df.set_index(['c', 's']); nul = pd.array([1, None], dtype='Int64'); view = df[:]",
        (
            "same is df",
            "int(df.a.sum()) == 4498500",
            "len(part) == 2994",
            "df.c.dtype == 'category'",
            "int(grp.a.sum().iloc[0]) == 1498500",
            "mi.index.nlevels == 2",
            "nul[1] is pd.NA",
            "(view.__setitem__('a', 0), int(df.a.sum()))[1] == 4498500",
            "(view.iloc.__setitem__((0, 1), 9.0), float(df.b.iloc[0]))[1] == 0.0",
        ),
    ),
    "scikit-learn": (
        "import numpy as np\nfrom sklearn.pipeline import make_pipeline\nfrom sklearn.preprocessing import StandardScaler, FunctionTransformer\nfrom sklearn.linear_model import LogisticRegression\nfrom sklearn.ensemble import RandomForestClassifier\nX = np.random.default_rng(0).normal(size=(200, 4)); y = (X[:, 0] > 0).astype(int)\ndef half(x): return x / 2\npipe = make_pipeline(FunctionTransformer(half), StandardScaler(), LogisticRegression()).fit(X, y); rf = RandomForestClassifier(5, random_state=0).fit(X, y); want = rf.predict_proba(X), pipe.predict_proba(X)",
        ("(rf.predict_proba(X) == want[0]).all()", "(pipe.predict_proba(X) == want[1]).all()"),
    ),
    "matplotlib figure": (
        "import matplotlib; matplotlib.use('agg')\nimport matplotlib.pyplot as plt\nfig, ax = plt.subplots(); (line,) = ax.plot([1, 3, 2]); ax.set_title('t')",
        (
            "fig.axes[0] is ax",
            "ax.lines[0] is line",
            "ax.get_title() == 't'",
            "list(line.get_ydata()) == [1, 3, 2]",
            "fig.canvas.draw() is None",
        ),
    ),
    "tables that share columns and indexes": (
        "import pandas as pd, numpy as np\nidx = pd.date_range('2024-01-01', periods=500, freq='h', name='at'); a = pd.DataFrame({'x': np.arange(500), 'k': list('ab') * 250}, index=idx); b = a.assign(y=1.5); col = b['x']; wide = a.pivot_table(values='x', index=a.index.hour, columns='k'); roll = a.x.rolling(3).mean(); stages = {'raw': a, 'clean': b}; a.attrs['src'] = 'lab'; iv = pd.cut(a.x, 3); per = idx.to_period('D'); tz = idx.tz_localize('UTC'); nullable = a.x.astype('Int32'); txt = pd.Series(['p', None], dtype='string')",
        (
            "stages['raw'] is a and stages['clean'] is b",
            "a.index.equals(idx) and a.index.freqstr == 'h' and a.attrs == {'src': 'lab'}",
            "(b.__setitem__('x', 0), int(col.sum()), int(a.x.sum()))[1:] == (124750, 124750)",
            "wide.shape == (24, 2) and roll.isna().sum() == 2",
            "str(iv.dtype) == 'category' and str(tz.tz) == 'UTC' and str(nullable.dtype) == 'Int32' and txt.isna()[1]",
            "per[0].start_time == idx[0]",
        ),
    ),
    "polars": (
        "import polars as pl\ndf = pl.DataFrame({'a': range(3_000), 's': ['x', 'y', None] * 1_000}); same = df; lazy = df.lazy().filter(pl.col('a') > 2_990); col = df['a']; expr = pl.col('a').sum().alias('t'); box = {'df': df}; cat = df.with_columns(pl.col('s').cast(pl.Categorical))",
        (
            "same is df and box['df'] is df",
            "lazy.collect().height == 9",
            "df.select(expr).item() == 4498500",
            "col.sum() == 4498500 and df['s'].null_count() == 1000",
            "cat.schema['s'] == pl.Categorical",
        ),
    ),
    "pyarrow": (
        "import pyarrow as pa, pyarrow.compute as pc, pandas as pd, numpy as np\nt = pa.table({'a': np.arange(9_000), 's': [str(i) for i in range(9_000)]}); cut = t.slice(10, 5); col = t['a']; arr = pa.array(np.arange(9_000.)); buf = arr.buffers()[1]; look = np.frombuffer(buf); nested = pa.array([[1], None, [2, 3]]); d = pa.array(['x', 'y', 'x']).dictionary_encode(); df = pd.DataFrame({'i': pd.array(range(100), dtype='int64[pyarrow]')}); schema = t.schema; keep = [t]",
        (
            "keep[0] is t and t.schema == schema",
            "cut.num_rows == 5 and cut['a'][0].as_py() == 10",
            "pc.sum(col).as_py() == 40495500",
            "look[5] == 5.0 and buf.size == 72_000 and arr[5].as_py() == 5.0",
            "nested[2].as_py() == [2, 3] and d.dictionary.to_pylist() == ['x', 'y']",
            "df.i.sum() == 4950 and str(df.i.dtype) == 'int64[pyarrow]'",
        ),
    ),
    "boosted trees with memory in C": (
        "import lightgbm as lgb, numpy as np\nX = np.random.default_rng(0).normal(size=(300, 4)); y = (X[:, 0] > 0).astype(int); clf = lgb.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1).fit(X, y); booster = clf.booster_; want = clf.predict_proba(X); plain = lgb.train({'verbose': -1, 'num_threads': 1}, lgb.Dataset(X, y), 3); raw = plain.predict(X)",
        (
            "clf.booster_ is booster",
            "(clf.predict_proba(X) == want).all()",
            "(plain.predict(X) == raw).all()",
            "booster.num_trees() == 5",
        ),
    ),
    "trees, searches and pipelines": (
        "import numpy as np, pandas as pd\nfrom sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingClassifier\nfrom sklearn.model_selection import GridSearchCV\nfrom sklearn.tree import DecisionTreeClassifier\nfrom sklearn.compose import ColumnTransformer\nfrom sklearn.preprocessing import OneHotEncoder, StandardScaler\nfrom sklearn.pipeline import Pipeline\nfrom sklearn.neighbors import KNeighborsClassifier\nX = pd.DataFrame({'n': np.arange(60.), 'c': list('abc') * 20}); y = (X.n % 7 > 3).astype(int)\nprep = ColumnTransformer([('n', StandardScaler(), ['n']), ('c', OneHotEncoder(), ['c'])]); pipe = Pipeline([('prep', prep), ('tree', DecisionTreeClassifier(random_state=0))])\ngrid = GridSearchCV(pipe, {'tree__max_depth': [1, 3]}, cv=2).fit(X, y); best = grid.best_estimator_; tree = best.named_steps['tree']; gb = GradientBoostingRegressor(n_estimators=3).fit(X[['n']], y); knn = KNeighborsClassifier().fit(X[['n']], y); want = grid.predict(X), gb.predict(X[['n']]), knn.predict(X[['n']])",
        (
            "grid.best_estimator_ is best and best.steps[1][1] is tree",
            "(grid.predict(X) == want[0]).all() and (gb.predict(X[['n']]) == want[1]).all() and (knn.predict(X[['n']]) == want[2]).all()",
            "grid.estimator is pipe and pipe.steps[0][1] is prep",
        ),
    ),
    "figures with several artists": (
        "import matplotlib.pyplot as plt, numpy as np\nplt.rcParams['lines.linewidth'] = 3.5\nfig, axes = plt.subplots(1, 2); (line,) = axes[0].plot([1, 2, 3], label='l'); leg = axes[0].legend(); im = axes[1].imshow(np.eye(4)); bar = fig.colorbar(im); note = axes[0].annotate('n', (0, 1)); axes[0].set_yscale('log')",
        (
            "fig.axes[0] is axes[0] and axes[0].lines[0] is line and line.axes is axes[0]",
            "axes[0].get_legend() is leg and axes[0].get_yscale() == 'log'",
            "im.colorbar is bar and im.axes is axes[1]",
            "(line.set_ydata([4, 5, 6]), list(axes[0].lines[0].get_ydata()))[1] == [4, 5, 6]",
            "plt.rcParams['lines.linewidth'] == 3.5 and line.get_linewidth() == 3.5",
            "fig.canvas.draw() is None",
        ),
    ),
}

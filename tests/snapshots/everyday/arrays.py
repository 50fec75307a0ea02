"""numpy and other memory, with everything that looks into it."""

# ruff: noqa: E501
from __future__ import annotations

SESSIONS = {
    "numpy views": (
        "import numpy as np\na = np.arange(10_000.); v = a[10:]; t = a.reshape(100, 100).T; back = a[::-1]; win = np.lib.stride_tricks.sliding_window_view(a, 3); bc = np.broadcast_to(a[:4], (5, 4)); f = np.asfortranarray(np.arange(6000.).reshape(60, 100)); fr = f[3]",
        (
            "(a.__setitem__(12, -1), v[2], back[-13], win[12, 0])[1:] == (-1, -1, -1)",
            "t[12, 0] == -1",
            "a.flags.owndata",
            "not bc.flags.writeable",
            "(f.__setitem__((3, 4), -7), fr[4])[1] == -7",
            "f.flags.f_contiguous and f.flags.owndata",
        ),
    ),
    "small numpy arrays and views": (
        "import numpy as np\na = np.arange(5); v = a[1:3]; z = np.zeros((0, 3)); s = np.float32(2.5); ro = np.arange(3); ro.flags.writeable = False; st = np.array([(1, 2.)], dtype=[('a', 'i1'), ('b', 'f8')]); o = np.array([1, 'x', None], dtype=object); d = np.array(['2020'], dtype='M8[D]'); m = np.ma.array([1, 2], mask=[0, 1]); u = np.array(['ab', 'c'])",
        (
            "(a.__setitem__(1, 9), v[0])[1] == 9",
            "z.shape == (0, 3)",
            "s == 2.5 and type(s) is np.float32",
            "not ro.flags.writeable",
            "st['b'][0] == 2.0",
            "o[2] is None",
            "str(d[0]) == '2020-01-01'",
            "m.mask.tolist() == [False, True]",
            "u[0] == 'ab'",
        ),
    ),
    "large special numpy arrays": (
        "import numpy as np\nst = np.zeros(2000, dtype=[('a', 'i4'), ('b', 'f8')]); st['a'] = 3; col = st['b']; d = np.arange(3000).astype('M8[s]'); ro = np.arange(3000); ro.flags.writeable = False; rv = ro[5:]",
        (
            "st['a'].sum() == 6000",
            "(st['b'].__setitem__(5, 1.5), col[5])[1] == 1.5",
            "d[1] > d[0]",
            "not ro.flags.writeable",
            "rv.base is ro",
        ),
    ),
    "numpy and torch over one memory": (
        "import torch, numpy as np\na = np.arange(2000.); t = torch.from_numpy(a); v = t[5:]; b = torch.zeros(2000); n = b.numpy(); s = n[3:]",
        (
            "(a.__setitem__(6, -1.), float(t[6]), float(v[1]))[1:] == (-1., -1.)",
            "(b.__setitem__(4, 9.), float(n[4]), float(s[1]))[1:] == (9., 9.)",
        ),
    ),
    "bytes, arrays and maps with views": (
        "import numpy as np, array, mmap\nraw = bytearray(10_000); look = np.frombuffer(raw, 'u1'); part = memoryview(raw)[100:200]; words = memoryview(raw).cast('I'); nums = array.array('d', range(2_000)); over = np.frombuffer(nums); shared = mmap.mmap(-1, 8_192); shared[:3] = b'abc'; seen = np.frombuffer(shared, 'u1'); text = bytes(range(256)) * 40; every = memoryview(raw)[::3]; small = bytearray(b'xy'); tiny = memoryview(small)",
        (
            "(raw.__setitem__(104, 7), look[104], part[4], words[26])[1:] == (7, 7, 7)",
            "(nums.__setitem__(5, -1.0), over[5])[1] == -1.0",
            "(over.__setitem__(6, -2.0), nums[6])[1] == -2.0",
            "shared[:3] == b'abc' and (shared.__setitem__(1, 65), seen[1])[1] == 65",
            "(tiny.__setitem__(0, 90), small)[1] == b'Zy'",
            "text[300] == 44 and len(every) == 3_334",
        ),
    ),
    "memory mapped files": (
        "import numpy as np, os\nnp.arange(5_000.).tofile('big.bin'); m = np.memmap('big.bin', dtype='f8', mode='r+', shape=(50, 100)); m[3, 4] = -1; row = m[3]; flat = np.asarray(m).ravel(); ro = np.memmap('big.bin', dtype='f8', mode='r'); own = np.memmap('big.bin', dtype='f8', mode='c'); own[0] = 55",
        (
            "m[3, 4] == -1 and type(m) is np.memmap and m.mode == 'r+' and not ro.flags.writeable",
            "(m.__setitem__((3, 5), -2), row[5], flat[305], ro[305])[1:] == (-2, -2, -2)",
            "(m.flush(), np.fromfile('big.bin')[305])[1] == -2",
            "own[0] == 55 and ro[0] == 0",
        ),
    ),
    "subclasses of arrays": (
        "import numpy as np\nclass Unit(np.ndarray):\n    def __array_finalize__(self, o): self.unit = getattr(o, 'unit', None)\nu = np.arange(3_000.).view(Unit); u.unit = 'm'; cut = u[10:]; base = u.base; rec = np.rec.array([(1, 2.)] * 900, dtype=[('a', 'i4'), ('b', 'f8')]); col = rec.b; mat = np.matrix(np.eye(60)); plain = np.asarray(mat); masked = np.ma.array(np.arange(900.), mask=[False, True] * 450); inner = masked.data; later = masked[3:]",
        (
            "(base.__setitem__(12, -1), u[12], cut[2], cut.unit)[1:] == (-1, -1, 'm')",
            "(col.__setitem__(3, 9), rec.b[3], type(rec).__name__)[1:] == (9, 'recarray')",
            "(plain.__setitem__((2, 3), 7), mat[2, 3], type(mat).__name__)[1:] == (7, 'matrix')",
            "(inner.__setitem__(4, -4), masked[4], later[1], masked.mask[5])[1:] == (-4, -4, True)",
        ),
    ),
    "arrays of objects": (
        "import numpy as np\nitem = [1]; o = np.array([item, 'x', None, {2}], dtype=object); tail = o[1:]; back = o[::-1]; grid = np.empty((30, 40), object); grid.fill(item); column = grid[:, 3]; loop = np.empty(2, object); loop[0] = loop; names = np.array(['a', 'bc'], dtype=np.dtypes.StringDType()) if hasattr(np.dtypes, 'StringDType') else None",
        (
            "o[0] is item and (o.__setitem__(1, 'new'), tail[0], back[2])[1:] == ('new', 'new')",
            "(grid.__setitem__((5, 3), 0), column[5])[1] == 0 and grid[0, 0] is item",
            "loop[0] is loop",
        ),
    ),
    "sparse matrices and their parts": (
        "import scipy.sparse as sp, numpy as np\nm = sp.random(200, 200, 0.1, 'csr', random_state=0); values = m.data; where = m.indices; coo = m.tocoo(); arr = sp.csr_array(m); lil = sp.lil_matrix((5, 5)); lil[1, 2] = 3; total = float(m.sum())",
        (
            "(values.__setitem__(0, 9.0), m.data[0])[1] == 9.0 and m.data is values",
            "where is m.indices",
            "coo.nnz == m.nnz",
            "lil[1, 2] == 3",
            "abs(arr.sum() - total) < 20",
        ),
    ),
    "generators of numpy go on": (
        "import numpy as np\nnp.random.seed(1); g = np.random.default_rng(2); both = [g, g.bit_generator]; old = np.random.RandomState(3); g.normal(size=3); old.rand(2); np.random.rand(2); mt = np.random.Generator(np.random.MT19937(4)); children = g.spawn(2); ss = np.random.SeedSequence(5)",
        ("both[0] is g and both[1] is g.bit_generator",),
        "more = [g.normal(), old.rand(), np.random.rand(), mt.integers(99), children[1].random(), ss.generate_state(1)[0]]",
    ),
}

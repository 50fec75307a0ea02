from jupyter_gpu_predict.demo.client import API
def test_a(server, run):
    async def f():
        nb = await server.open()
        e = await nb.run("1+1")
        assert e.text == "2"
        return nb, await server.get(API+"/kernels")
    nb, k = run(f())
    print(k)
    import time, asyncio
    async def g():
        e = await nb.run("%gpu")
        print(e.text)
    run(g())

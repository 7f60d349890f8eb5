"""A file with models and planted backends, for the tests of `opaq bench model`."""

MODELS = """
import time, torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(16, 16)
    def forward(self, x):
        print("from the model")
        return self.inner(x).relu()

def make(B=4):
    return Model(), (torch.randn(B, 16),)

def nothing(B=4):
    return Model()

def with_dropout():
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)), [torch.randn(2, 4)]

@torch._dynamo.register_backend
def planted_wrong(graph, inputs):
    return lambda *args: [each * 1.01 for each in graph(*args)]

@torch._dynamo.register_backend
def planted_slow(graph, inputs):
    def run(*args):
        time.sleep(0.01)
        return graph(*args)
    return run

@torch._dynamo.register_backend
def planted_broken(graph, inputs):
    raise RuntimeError("no such chip")

@torch._dynamo.register_backend
def planted_endless(graph, inputs):
    time.sleep(1000)

@torch._dynamo.register_backend
def planted_crash(graph, inputs):
    import os
    print("about to end", flush=True)
    os._exit(9)
"""

"""`opaq bench`: what opaque ops cost, and what each backend of torch.compile gives on a model.

measure.py holds the method (turns, medians, intervals, correctness), result.py the one format of
results, command.py the command line. Each other module is one benchmark.
"""

"""Pictures of prompts, steered by rewards or as the generator makes them.

prompt_sets.py  the prompts: GenEval's, T2I-CompBench's, I2P's, the paper's three, or a line each
run.py          from prompts and a generator to a folder of items, batch by batch; goes on after a kill
folder.py       what is in that folder, and reading it back
"""

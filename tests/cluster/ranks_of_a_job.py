"""What the ranks of a TrainJob run in a test: they form a group and add their numbers."""

import sys

import torch

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
total = torch.tensor(float(torch.distributed.get_rank()))
torch.distributed.all_reduce(total)
if torch.distributed.get_rank() == 0:
    print(f"rank 0 of {torch.distributed.get_world_size()}: sum {total:.0f}, argument {sys.argv[1]}", flush=True)
torch.distributed.destroy_process_group()

"""The stages in their order: typed record in, frozen record out. Both front ends call these and nothing else."""

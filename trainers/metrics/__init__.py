"""Figures of merit as pure functions on features, classes or pixels of real and generated images: one idea a file.

They know nothing of datasets, networks or stores: `trainers.evaluation` hands them what an extractor gave. Features are
torch tensors (N, D) of any float type on any one device; all arithmetic is in float64, and distances are computed a
block of rows at a time, so that memory grows with N, not with N x M.

Every function raises MetricInputError, in one line, for features that are not finite, for too few rows, and for sets
of different width. Names: `real` are images of the held-out split, `fake` generated ones.

Shape legend: N real images, M generated ones, D feature size, K classes or neighbours, R resamples, G groups of rows,
B rows of one block, C channels, H height, W width.
"""

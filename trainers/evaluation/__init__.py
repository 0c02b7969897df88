"""From images to the figures of an evaluation: what is looked at, with which eyes, and what is said of it.

    open_eyes -> measure real images, samples and training images -> sample, copy and likelihood figures

Images pass through a batch at a time; what is kept of them does not grow with their number, but for a few bytes an
image (its class, its sharpness): moments of the features, the features of MAX_KEPT images, and on disk, for as long as
the evaluation takes, the features of the training images.
"""

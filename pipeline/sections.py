"""The sections of a recipe but for its source: what each field is, its bounds and its default."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from pipeline.artifacts import Strict

NAME_PATTERN = r"^[a-z][a-z0-9_]{0,39}$"  # a DAG id, a folder of the store and a bucket key all take such a name

BLOCK_IMAGE_BYTES = 64 << 10  # up to this size decoded, `layout: auto` puts images into blocks
SHARD_BYTES = 8 << 20  # where the recipe does not say: about this size decoded ...
SHARD_IMAGES = (256, 8192)  # ... but so many images
YEAR_MINUTES = 365 * 24 * 60


class DatasetSpec(Strict):
    """What the images become: uint8 (height, width, channels), cut into splits and shards."""

    channels: Literal[1, 3]
    height: int = Field(ge=4, le=1024)
    width: int = Field(ge=4, le=1024)
    fit: Literal["contain", "cover", "stretch"] = "contain"
    held_out: float = Field(0.15, gt=0, lt=1)  # share of the samples in the split `test`
    layout: Literal["auto", "sample", "block"] = "auto"  # a record an image, or a record a block of images
    encoding: Literal["png", "jpg", "webp"] = "png"  # of the images in layout `sample`; blocks hold plain pixels
    quality: int = Field(95, ge=1, le=100)  # of jpg and webp (100: webp without loss)
    shard_images: int | None = Field(None, ge=1)  # None: by the size of an image
    block_images: int = Field(512, ge=256, le=1024)
    duplicates: Literal["drop", "keep"] = "drop"  # inputs of the same pixels and class
    near_duplicates: Literal["ignore", "count", "drop"] = "ignore"
    near_distance: int = Field(3, ge=0, le=8)  # bits of 64 by which the perceptual hashes of near duplicates differ
    max_pixels: int = Field(50_000_000, ge=1)  # a larger image is rejected before it is decoded

    @model_validator(mode="after")
    def _webp_is_colour(self) -> Self:
        if self.encoding == "webp" and self.channels == 1:
            raise ValueError("encoding: png or jpg with channels: 1, got webp, which has no grey")
        return self

    @property
    def image_bytes(self) -> int:
        """Bytes of one decoded image."""
        return self.channels * self.height * self.width

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one decoded image."""
        return self.height, self.width, self.channels

    @property
    def resolved_layout(self) -> Literal["sample", "block"]:
        """The layout that `auto` means for images of this size."""
        if self.layout == "auto":
            return "block" if self.image_bytes <= BLOCK_IMAGE_BYTES else "sample"
        return self.layout

    @property
    def resolved_shard_images(self) -> int:
        """How many images a shard holds."""
        low, high = SHARD_IMAGES
        return self.shard_images or min(max(SHARD_BYTES // self.image_bytes, low), high)


class ChecksSpec(Strict):
    """What a dataset must be before anything is trained on it. It enters no id. None: not checked."""

    min_images: int = Field(4, ge=4)
    min_images_per_class: int = Field(1, ge=0)
    max_rejected: float = Field(0.0, ge=0, le=1)  # share of the inputs
    max_label_drift: float | None = Field(None, ge=0, le=1)  # total variation distance to the parent's label histogram
    max_pixel_drift: float | None = Field(None, ge=0)  # |mean - parent's mean| / parent's std, of the worst channel


class ModelSpec(BaseModel):
    """One model to train. Fields that are not named here are the family's own."""

    model_config = ConfigDict(frozen=True, extra="allow")

    family: str
    steps: int = Field(ge=1)
    batch_size: int = Field(64, ge=1)  # global: over all workers
    seed: int = Field(0, ge=0, lt=2**31)
    ema_half_life_images: int = Field(20_000, ge=1)
    checkpoint_every_steps: int = Field(1_000, ge=1)
    log_every_steps: int = Field(50, ge=1)
    keep_last: int = Field(2, ge=1)  # newest checkpoints that are kept
    keep_best: str | None = None  # beside them the one of the lowest value of a logged metric, such as vae/loss
    preview_every_steps: int | None = Field(None, ge=0)  # grids of images of fixed latents; None: ten a run, 0: none
    warm_start: Literal["champion"] | None = None  # begin with the weights of the release that has the alias

    @property
    def identity(self) -> dict[str, Any]:
        """What the run's id is made of: all but what leaves its result as it is."""
        left_out = {"keep_last", "keep_best", "preview_every_steps"}
        if self.warm_start is None:  # so that runs of versions that did not have it keep their ids
            left_out.add("warm_start")
        return self.model_dump(mode="json", exclude=left_out)

    @property
    def options(self) -> dict[str, Any]:
        """The family's own fields."""
        return dict(self.model_extra or {})


class ClusterSpec(Strict):
    """Where training runs. It enters no id: the same run continues on another cluster."""

    launcher: Literal["ray", "local"] = "ray"  # local: one worker in this process, without ray
    workers: int = Field(1, ge=1, le=4096)
    min_workers: int | None = Field(None, ge=1)  # go on with so many while others are lost; None: wait for all
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    zero: Literal[0, 1, 2, 3] = 0  # DeepSpeed's ZeRO stage: 1 splits Adam's moments over workers, 2 gradients, 3 all
    offload: Literal["none", "cpu"] = "none"  # cpu: Adam and its moments (zero 1 to 3)
    accumulate: int = Field(1, ge=1, le=4096)  # parts that a worker's share of a batch is computed in: saves memory
    checkpoint_activations: bool = False  # recompute residual blocks on the way back: saves memory, costs a third
    compile: bool = False  # torch.compile of the networks
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the networks; auto: bf16 on GPUs that have it
    cpus_per_worker: float = Field(1, gt=0)
    threads_per_worker: int = Field(1, ge=1)  # on CPU
    max_failures: int = Field(3, ge=0)  # worker groups lost before the run gives up
    timeout_minutes: int = Field(24 * 60, ge=1, le=YEAR_MINUTES)

    @model_validator(mode="after")
    def _engine_has_its_settings(self) -> Self:
        if self.zero and self.engine != "deepspeed":
            raise ValueError(f"zero: 0 with engine: {self.engine}, got zero: {self.zero}; choose engine: deepspeed")
        if self.offload == "cpu" and not self.zero:
            raise ValueError("zero: 1, 2 or 3 with offload: cpu, got zero: 0")
        if self.compile and self.zero == 3:
            raise ValueError("compile: false with zero: 3, whose hooks a compiled network passes over; or zero: 2")
        return self

    @model_validator(mode="after")
    def _local_is_one_worker(self) -> Self:
        if self.launcher == "local" and (self.workers, self.engine) != (1, "torch"):
            raise ValueError(
                "workers: 1 and engine: torch with launcher: local, got "
                f"workers: {self.workers} and engine: {self.engine}; choose launcher: ray for more"
            )
        return self

    @model_validator(mode="after")
    def _at_most_all_workers(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(
                f"min_workers of at most workers, got min_workers: {self.min_workers} and workers: {self.workers}"
            )
        return self

    @property
    def elastic(self) -> bool:
        """Whether a run goes on with fewer workers."""
        return self.min_workers is not None and self.min_workers < self.workers


class ExtractorSpec(Strict):
    """A network from a file of one's own whose output is taken as features, and how it wants its images.

    The file (TorchScript, ONNX, or the weights of another dataset's extractor beside its extractor.json) must be on
    each node that evaluates.
    """

    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # of the file: another network is another protocol
    side: int | None = Field(None, ge=1, le=4096)  # images are resized to side x side; None: left as they are
    channels: Literal[1, 3] | None = None  # grey is repeated, colour is averaged; None: left as they are
    values: Literal["unit", "symmetric", "imagenet", "bytes"] = "unit"  # [0, 1], [-1, 1], ImageNet's, 0 to 255


class EvaluationSpec(Strict):
    """What a run is measured on, and with which eyes."""

    split: Literal["test"] = "test"
    num_samples: int = Field(1_000, ge=50)
    seed: int = Field(0, ge=0, lt=2**31)
    # classifier, or self_supervised where the dataset has no classes; both are trained on its training split
    extractor: Literal["auto", "self_supervised"] | ExtractorSpec = "auto"
    importance_samples: int = Field(50, ge=1, le=100_000)  # K of the held-out likelihood, for families that have one


class ReleaseSpec(Strict):
    """What is published."""

    num_samples: int = Field(256, ge=1)
    seed: int = Field(0, ge=0, lt=2**31)
    license: str = "other"
    description: str = ""
    alias: str = Field("champion", pattern=NAME_PATTERN)

    @field_validator("alias")
    @classmethod
    def _not_the_gates(cls, alias: str) -> str:
        if alias == "candidate":
            raise ValueError("another alias than candidate, which names what the gate kept back")
        return alias


class GateSpec(Strict):
    """What a release must show to take the alias from the one that has it. It enters no id.

    Better means beyond the 95% interval of the difference of the two figures, and by more than `margin`; a tie keeps
    the champion. The other bars hold for the first release, too.
    """

    metric: str = "frechet_distance"  # a figure of the evaluation
    direction: Literal["lower", "higher"] = "lower"  # which is better
    margin: float = Field(0.0, ge=0, allow_inf_nan=False)  # in the metric's own unit
    max_near_copies: float | None = Field(None, ge=0, le=1)  # share of samples that nearly are training images
    floors: dict[str, float] = Field(default_factory=dict)  # figures that must be so high ...
    ceilings: dict[str, float] = Field(default_factory=dict)  # ... or so low


class WatchSpec(Strict):
    """Ingest when the source has changed and has then rested for the settle time: many arrivals make one ingest."""

    watch: Literal["source"]
    poll_seconds: int = Field(60, ge=1, le=24 * 3600)
    settle_seconds: int = Field(120, ge=0, le=7 * 24 * 3600)


class AirflowSpec(Strict):
    """How Airflow runs the recipe. It enters no id. The lengths are those that Airflow's database takes."""

    owner: str = Field("atelier", min_length=1, max_length=500)
    tags: tuple[Annotated[str, StringConstraints(min_length=1, max_length=100)], ...] = ()
    # A pool of GPUs (made with --include-deferred): a model's training takes a slot for each worker. None: no limit.
    pool: str | None = Field(None, max_length=256)
    retries: int = Field(2, ge=0, le=100)  # of a fault of the infrastructure; a user's mistake fails at once
    retry_seconds: float = Field(10, gt=0, le=3600)  # before the first retry, then twice as long, up to an hour
    # A run that is not done so long after it was queued is told of.
    late_after_minutes: int | None = Field(None, ge=1, le=YEAR_MINUTES)
    notify: str | None = Field(None, max_length=250)  # an Airflow connection: told, as JSON, of failed and late runs

    @model_validator(mode="after")
    def _somebody_is_told(self) -> Self:
        if self.late_after_minutes is not None and not self.notify:
            raise ValueError(
                f"notify with late_after_minutes: {self.late_after_minutes}, got none, so nobody would be told; "
                "name an Airflow connection, or leave late_after_minutes out"
            )
        return self

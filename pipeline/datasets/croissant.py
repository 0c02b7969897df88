"""Croissant 1.1 metadata of a dataset's version (https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html).

    distribution   each shard, and the index, with SHA-256; what lies within the shards as a file set
    record sets    `splits` and `classes` (the names, and how many samples: the label histogram), `inputs` (every row
                   of the index: what it is, where its sample lies), and in layout `sample` `images` (key, image, split
                   and label: the shards' files joined with the index)

Addresses are relative to the version's folder, where the file lies: shards stand beside the versions. Every shard is
listed, however many there are, because a file set carries no digests: 0.4 kB each.

The specification also asks for a url, a creator and a date. They are not known here, and the same inputs give the same
bytes: who puts the dataset on a page adds them.
"""

import json
from typing import Any

from pipeline.artifacts import Dataset, FileEntry

CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
IMAGE_KINDS = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
SPLIT_KINDS = {"train": "cr:TrainingSplit", "test": "cr:TestSplit"}
INDEX, MEMBERS = "index.parquet", "members"
INDEX_COLUMNS: dict[str, tuple[str | list[str], str]] = {
    "name": ("sc:Text", "The input's name in its source."),
    "status": ("sc:Text", "sample, duplicate, near duplicate, taken down or rejected."),
    "reason": ("sc:Text", "Why the input was rejected."),
    "label": (["sc:Text", "cr:Label"], "The name of its class."),
    "split": ("sc:Text", "The split that its pixels belong to."),
    "key": ("sc:Text", "The key of its sample, where it is one."),
    "shard": ("sc:Text", "The shard that holds the sample."),
    "pos": ("sc:Integer", "The sample's place in its shard."),
    "width": ("sc:Integer", "Width of the source image in pixels."),
    "height": ("sc:Integer", "Height of the source image in pixels."),
}

Node = dict[str, Any]


def croissant(dataset: Dataset, license: str, description: str, index: FileEntry, encoding: str) -> bytes:
    """The metadata as JSON-LD, the same bytes each time. `encoding` is that of the images in layout `sample`."""
    document: Node = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": dataset.name,
        "description": description or _about(dataset),
        "conformsTo": CONFORMS_TO,
        "license": license,
        "version": f"1.0.0+{dataset.id}",
        "identifier": dataset.ref,
        "citeAs": f"{dataset.name}, version {dataset.id}",
        "variableMeasured": _measured(dataset),
        "distribution": [*_files(dataset, index), _members(dataset, encoding)],
        "recordSet": _record_sets(dataset),
    }
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def _about(dataset: Dataset) -> str:
    splits = ", ".join(f"{count:,} {split}" for split, count in dataset.splits.items())
    classes = f" of {len(dataset.classes):,} classes" if dataset.classes else ""
    return f"{splits} images{classes}, {dataset.height} x {dataset.width} pixels with {dataset.channels} channels."


def _measured(dataset: Dataset) -> list[Node]:
    """Pixel statistics as schema.org's property values; the counts stand in the record sets of splits and classes."""
    values = {"mean": dataset.statistics.mean, "standard deviation": dataset.statistics.std}
    return [
        {"@type": "sc:PropertyValue", "name": f"pixel {name} of each channel, 0 to 255", "value": list(value)}
        for name, value in values.items()
    ]


def _files(dataset: Dataset, index: FileEntry) -> list[Node]:
    shards = [_file(shard, f"../shards/{shard.name}", "application/x-tar") for shard in dataset.shards]
    return [*shards, _file(index, index.name, "application/x-parquet")]


def _file(entry: FileEntry, url: str, kind: str) -> Node:
    return {
        "@type": "cr:FileObject",
        "@id": entry.name,
        "name": entry.name,
        "contentUrl": url,
        "contentSize": f"{entry.bytes} B",
        "encodingFormat": kind,
        "sha256": entry.sha256,
    }


def _members(dataset: Dataset, encoding: str) -> Node:
    """What lies within the shards. One file set: mlcroissant's time grows with file sets x shards squared."""
    described = _of_pictures(encoding) if dataset.layout == "sample" else _of_blocks(dataset)
    contained = [{"@id": shard.name} for shard in dataset.shards]
    return {"@type": "cr:FileSet", "@id": MEMBERS, "name": MEMBERS, "containedIn": contained} | described


def _of_pictures(encoding: str) -> Node:
    about = "KEY is the sample's."
    return {"description": about, "encodingFormat": IMAGE_KINDS[encoding], "includes": f"*.{encoding}"}


def _of_blocks(dataset: Dataset) -> Node:
    """npy, which has no registered type and which mlcroissant cannot read: a record set would promise too much."""
    shape = f"n, {dataset.height}, {dataset.width}, {dataset.channels}"
    arrays = {"images": f"uint8 ({shape})", "keys": "uint64 (n,), the samples' keys"}
    if dataset.classes:
        arrays["labels"] = "int64 (n,), the indices of the classes"
    about = "; ".join(f"KEY.{name}.npy {what}" for name, what in arrays.items())
    return {
        "description": f"Blocks of n samples as arrays in npy 1.0, the KEY of its first sample names a block: {about}.",
        "encodingFormat": "application/x-npy",
        "includes": [f"*.{name}.npy" for name in arrays],
    }


def _record_sets(dataset: Dataset) -> list[Node]:
    found = [_splits(dataset), _inputs(dataset)]
    if dataset.layout == "sample":
        found.append(_pictures(dataset))
    if dataset.classes:
        found.append(_classes(dataset))
    return found


def _splits(dataset: Dataset) -> Node:
    fields = [
        _field("splits", "name", "sc:Text", "As it stands in the index."),
        _field("splits", "url", ["sc:URL", "cr:Split"], "What it is for."),
        _field("splits", "images", "sc:Integer", "How many samples are in it."),
    ]
    data = [
        {"splits/name": name, "splits/url": SPLIT_KINDS[name], "splits/images": count}
        for name, count in dataset.splits.items()
    ]
    return _listed("splits", "cr:Split", "The splits. A hash of a sample's pixels decides on its split.", fields, data)


def _classes(dataset: Dataset) -> Node:
    """The label histogram, too."""
    fields = [
        _field("classes", "name", "sc:Text", "The name of the class."),
        _field("classes", "index", "sc:Integer", "As it stands in the shards."),
        *(_field("classes", split, "sc:Integer", f"Its samples in the split {split}.") for split in dataset.splits),
    ]
    labels = dataset.statistics.labels
    data = [
        {"classes/name": name, "classes/index": index}
        | {f"classes/{split}": labels[split].get(name, 0) for split in dataset.splits}
        for index, name in enumerate(dataset.classes)
    ]
    return _listed("classes", "sc:Enumeration", "The classes.", fields, data)


def _inputs(dataset: Dataset) -> Node:
    fields = [
        _field("inputs", column, kind, about, _of_index(column), _referred(dataset, column))
        for column, (kind, about) in INDEX_COLUMNS.items()
    ]
    return _record_set("inputs", "Every input of the source, and what it became.", fields)


def _pictures(dataset: Dataset) -> Node:
    """Image, label and split of each sample: files of the shards, joined with the index by key."""
    files = {"fileSet": {"@id": MEMBERS}}
    key = files | {"extract": {"fileProperty": "filename"}, "transform": {"regex": r"^([^.]+)"}}
    fields = [
        _field("images", "key", "sc:Text", "The sample's key.", key, _of_index("key")),
        _field("images", "image", "sc:ImageObject", "The picture.", files | {"extract": {"fileProperty": "content"}}),
        _field("images", "split", "sc:Text", "The sample's split.", _of_index("split"), _referred(dataset, "split")),
    ]
    if dataset.classes:
        kind, about = INDEX_COLUMNS["label"]
        fields.append(_field("images", "label", kind, about, _of_index("label"), _referred(dataset, "label")))
    return _record_set("images", "The samples.", fields)


def _of_index(column: str) -> Node:
    return {"fileObject": {"@id": INDEX}, "extract": {"column": column}}


def _referred(dataset: Dataset, column: str) -> Node | None:
    """The field that lists the values of this column."""
    if column == "split":
        return {"field": {"@id": "splits/name"}}
    return {"field": {"@id": "classes/name"}} if column == "label" and dataset.classes else None


def _listed(name: str, kind: str, about: str, fields: list[Node], data: list[Node]) -> Node:
    """A record set whose records stand in the metadata."""
    return _record_set(name, about, fields) | {"dataType": kind, "key": {"@id": f"{name}/name"}, "data": data}


def _record_set(name: str, about: str, fields: list[Node]) -> Node:
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "description": about, "field": fields}


def _field(
    record_set: str,
    name: str,
    kind: str | list[str],
    about: str,
    source: Node | None = None,
    references: Node | None = None,
) -> Node:
    node = {"@type": "cr:Field", "@id": f"{record_set}/{name}", "name": name, "description": about, "dataType": kind}
    return node | ({"source": source} if source else {}) | ({"references": references} if references else {})

"""Requests and answers of the server, as its OpenAPI description has them.

What comes in many forms is read by `forms.Reader`; here it is only described.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

_STRING = {"type": "string", "minLength": 1}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_IMAGE_TEXT = {
    "type": "string",
    "minLength": 1,
    "description": "base64, a data URI, or an https link where the server allows it",
}
_IMAGE_PART = {
    "type": "object",
    "properties": {
        "image_url": {
            "type": "object",
            "properties": {"url": _IMAGE_TEXT},
            "required": ["url"],
        }
    },
    "required": ["image_url"],
}
_IMAGE_DICT = {"type": "object", "properties": {"image": _IMAGE_TEXT}, "required": ["image"]}
_TEXT_DICT = {"type": "object", "properties": {"text": _STRING}, "required": ["text"]}
_ITEM = {"anyOf": [_STRING, _TEXT_DICT, _IMAGE_DICT, _IMAGE_PART]}
_IMAGE = {"anyOf": [_IMAGE_TEXT, _IMAGE_DICT, _IMAGE_PART]}


def _several(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema, "minItems": 1}


Inputs = Annotated[
    Any,
    WithJsonSchema({"anyOf": [_STRING, _IDS, _several({"anyOf": [_IDS, *_ITEM["anyOf"]]})]}),
]
ItemForm = Annotated[Any, WithJsonSchema(_ITEM)]
Items = Annotated[Any, WithJsonSchema(_several(_ITEM))]
ImageForm = Annotated[Any, WithJsonSchema(_IMAGE)]
Images = Annotated[Any, WithJsonSchema({"anyOf": [*_IMAGE["anyOf"], _several(_IMAGE)]})]
Texts = Annotated[Any, WithJsonSchema(_several(_STRING))]
_PART = {
    "anyOf": [
        {
            "type": "object",
            "properties": {"type": {"const": "text"}, "text": _STRING},
            "required": ["type", "text"],
        },
        {
            **_IMAGE_PART,
            "properties": {"type": {"const": "image_url"}, **_IMAGE_PART["properties"]},
            "required": ["type", "image_url"],
        },
    ]
}
_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"type": "string"},
        "content": {
            "anyOf": [_STRING, {"type": "array", "items": _PART, "minItems": 1, "maxItems": 1}]
        },
    },
    "required": ["content"],
}
Messages = Annotated[
    Any, WithJsonSchema({"type": "array", "items": _MESSAGE, "minItems": 1, "maxItems": 1})
]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Request(_Strict):
    model: str | None = Field(None, description="The server's model, if given")
    max_num_patches: int | None = Field(
        None, ge=1, description="Token budget of images: one of those that the server offers"
    )


class EmbeddingRequest(_Request):
    """Texts or images to embed: `input`, or `messages` with exactly one text or image."""

    input: Inputs = None
    messages: Messages = None
    modality: Literal["text", "image"] = Field(
        "text", description="What strings of `input` are; images as base64 or data URI"
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="Numbers, or base64 of little-endian float32"
    )
    dimensions: int | None = Field(
        None, ge=1, description="Keep so many leading numbers and scale them to unit length"
    )
    user: str | None = Field(None, description="Ignored")


class Usage(_Strict):
    """Text tokens and patches that were read."""

    prompt_tokens: int
    total_tokens: int


class Embedding(_Strict):
    """One item's embedding, of unit length."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingAnswer(_Strict):
    """Embeddings in the order of the items."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class ClassifyRequest(_Request):
    """Images and the labels to choose from: `labels`, or the name of a `label_set`."""

    images: Images
    labels: Texts = None
    label_set: str | None = Field(None, description="One of those that /v1/models lists")
    templates: Texts = Field(None, description='Prompts of each label, such as "a photo of a {}"')


class LabelScore(_Strict):
    """A label with its own probability; those of an image do not sum to 1."""

    label: str
    probability: float


class ErrorContent(_Strict):
    """Error in OpenAI's form."""

    message: str
    type: str
    param: str | None
    code: str | None


class Errors(_Strict):
    """Answer of a request that failed."""

    error: ErrorContent


class Classified(_Strict):
    """Labels of one image, best first; or its error."""

    index: int
    labels: list[LabelScore] | None = None
    accepted: list[str] | None = Field(
        None, description="Labels from the calibration's threshold on; none without a calibration"
    )
    width: int | None = Field(None, description="Pixels, upright")
    height: int | None = None
    grid: list[int] | None = Field(None, description="Rows and columns of patches")
    error: ErrorContent | None = None


class ClassifyAnswer(_Strict):
    """Labels of all images."""

    object: Literal["list"] = "list"
    model: str
    max_num_patches: int
    calibrated: bool
    threshold: float | None = Field(description="Probability from which a label is accepted")
    results: list[Classified]
    usage: Usage


class RerankRequest(_Request):
    """Documents to order by a query: all texts, or all images."""

    query: ItemForm
    documents: Items
    top_n: int | None = Field(None, ge=1, description="Results at most")


class Ranked(_Strict):
    """A document's place in the request, and its score."""

    index: int
    relevance_score: float


class RerankAnswer(_Strict):
    """Documents, best first.

    Scores of image and text are probabilities, of two texts or two images cosines.
    """

    object: Literal["list"] = "list"
    model: str
    results: list[Ranked]
    usage: Usage


class SearchRequest(_Strict):
    """Query to the database, in words or as an image."""

    model: str | None = None
    query: ItemForm = None
    image: ImageForm = None
    k: int = Field(10, ge=1, le=1000, description="Results at most")
    where: str | None = Field(
        None, max_length=2000, description="Condition on columns, in SQL without functions"
    )
    threshold: float | None = Field(None, ge=-1, le=1, description="Lowest cosine that counts")


class SearchHit(_Strict):
    """Image of the database, and its cosine with the query."""

    id: str
    score: float
    caption: str | None
    fields: dict[str, Any]
    width: int | None
    height: int | None


class SearchAnswer(_Strict):
    """Images that were found, best first."""

    object: Literal["list"] = "list"
    model: str
    results: list[SearchHit]


class LabelSetInfo(_Strict):
    """Set of labels that requests can name."""

    labels: list[str]
    templates: list[str]
    calibrated: bool
    max_num_patches: int


class ModelInfo(_Strict):
    """The model, and what the server offers of it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    dimensions: int
    max_num_patches: list[int] = Field(description="Budgets to choose from, the default first")
    label_sets: dict[str, LabelSetInfo]
    patch_size: int = Field(description="Pixels of a patch's side")
    search: bool = Field(description="There is a database to search")


class Models(_Strict):
    """All models: one."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class Status(_Strict):
    """State of the server in a word or two."""

    status: str

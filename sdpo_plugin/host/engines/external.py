"""`reference: <path or hub id>`: a model that is loaded through the host for its log-probs, and released."""

import copy

from axolotl.loaders import ModelLoader
from axolotl.loaders.utils import load_model_config
from axolotl.utils.dict import DictDefault
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.integrations.deepspeed import set_hf_deepspeed_config

from sdpo_plugin.errors import ConfigError
from sdpo_plugin.host.engines.tokenizer import tokenizer_of

SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
LOAD_ERRORS = (OSError, ValueError, KeyError)  # what transformers raises on a path or id that is no model


def reference_cfg(cfg: DictDefault, path: str, revision: str | None = None) -> DictDefault:
    """The config as the host would have it for this model: same dtype, quantization and ranks, no adapter."""
    own = copy.deepcopy(cfg)
    own.base_model = own.base_model_config = own.tokenizer_config = path
    own.adapter = own.lora_model_dir = own.tokenizer_type = own.type_of_model = None
    own.processor_type, own.revision_of_model = None, revision
    try:
        config = load_model_config(own)
    except LOAD_ERRORS as error:
        raise ConfigError(
            f"sdpo.reference: {path!r} cannot be loaded as a model: {' '.join(str(error).split())}; set previous, "
            "base, or the path or hub id of a model."
        ) from error
    own.model_config_type = config.model_type
    own.is_llama_derived_model = config.model_type == "llama"
    own.is_mistral_derived_model = config.model_type == "mistral"
    own.is_qwen_derived_model = config.model_type.startswith("qwen")
    own.is_falcon_derived_model = config.model_type.startswith("falcon")
    return own


def require_same_tokenizer(cfg: DictDefault, path: str) -> None:
    """Refuse a reference whose token ids mean something else than the policy's.

    Raises:
        ConfigError: another vocabulary or other special tokens; the message names the first difference. Or the
            reference has fewer embeddings than that: the host would add some at random.
    """
    ours = tokenizer_of(cfg)
    own = reference_cfg(cfg, path)
    try:
        theirs = tokenizer_of(own)
    except LOAD_ERRORS as error:
        raise ConfigError(
            f"sdpo.reference: {path!r} has no tokenizer that can be loaded: {' '.join(str(error).split())}; save the "
            "tokenizer beside the model."
        ) from error
    difference = _difference(ours, theirs)
    if difference:
        raise ConfigError(
            f"sdpo.reference: {path!r} has another tokenizer than base_model: {str(cfg.base_model)!r}: {difference}. "
            "The same text has other token ids there, so its log-probs would be wrong; set a reference that shares the "
            "policy's tokenizer."
        )
    _require_embeddings(path, load_model_config(own).get_text_config().vocab_size, len(ours))


def _require_embeddings(path: str, size: int, num_tokens: int) -> None:
    if size < num_tokens:
        raise ConfigError(
            f"sdpo.reference: {path!r} has embeddings for {size} tokens, and its tokenizer has {num_tokens}, so that "
            "some would be drawn at random; set a reference whose embeddings were enlarged with its tokenizer."
        )


def _difference(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> str | None:
    one, other = ours.get_vocab(), theirs.get_vocab()
    if one != other:
        tokens = sorted(token for token in one.keys() | other.keys() if one.get(token) != other.get(token))
        token = tokens[0]
        return (
            f"{len(tokens)} tokens differ (vocabularies of {len(one)} and {len(other)}), e.g. {token!r} has id "
            f"{one.get(token)} here and {other.get(token)} there"
        )
    for name in SPECIAL:
        if getattr(ours, name) != getattr(theirs, name):
            return f"{name} is {getattr(ours, name)!r} here and {getattr(theirs, name)!r} there"
    return None


def load_base(cfg: DictDefault, trainer: Trainer) -> PreTrainedModel:
    """Load the base model once more, for its log-probs.

    Raises:
        ConfigError: it has fewer embeddings than the tokenizer has tokens, so that each load draws the others anew.
    """
    path, tokens = str(cfg.base_model), len(trainer.processing_class)
    size = load_model_config(cfg).get_text_config().vocab_size
    if size < tokens:
        raise ConfigError(
            f"base_model: {path!r} has embeddings for {size} tokens, and the tokenizer has {tokens}: the others were "
            "drawn at random when the run began, so that its M_0 cannot be asked about the rows of a step that is new. "
            "Train into another output_dir, from a base model whose embeddings were enlarged."
        )
    return load_reference(cfg, path, trainer, cfg.revision_of_model)


def load_reference(cfg: DictDefault, path: str, trainer: Trainer, revision: str | None = None) -> PreTrainedModel:
    """Load the reference through the host's own loader.

    Under ZeRO-3 the loader leaves transformers' global DeepSpeed config pointing at an object that it drops, after
    which the host believes that ZeRO-3 is off and saves empty weights; the trainer's own config is put back. So is
    PyTorch's cross entropy: with `liger_cross_entropy` the loader puts Liger's in its place, or in that of patches.py.

    Raises:
        ConfigError: the model cannot be loaded.
    """
    own, cross_entropy = reference_cfg(cfg, path, revision), functional.cross_entropy
    try:
        model, _ = ModelLoader(own, trainer.processing_class, reference_model=True).load()
    except LOAD_ERRORS as error:
        raise ConfigError(f"sdpo.reference: {path!r} cannot be loaded: {' '.join(str(error).split())}.") from error
    finally:
        functional.cross_entropy = cross_entropy
    if trainer.is_deepspeed_enabled:
        set_hf_deepspeed_config(trainer.accelerator.state.deepspeed_plugin.hf_ds_config)
    model.requires_grad_(False)
    found: PreTrainedModel = model
    return found

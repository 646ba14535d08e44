"""Small networks that the experiments share, and their functional form: parameters in, logits out."""

from reweight.models.build import MODELS, build
from reweight.models.decoder import DECODERS, Decoder, DecoderConfig
from reweight.models.functional import ApplyFn, Functional, functional
from reweight.models.language_model import LanguageModel, decoder_sharding_rules, language_model
from reweight.models.nets import MLP, ConvNet
from reweight.models.resnet import ResNet18

__all__ = [
    "DECODERS",
    "MLP",
    "MODELS",
    "ApplyFn",
    "ConvNet",
    "Decoder",
    "DecoderConfig",
    "Functional",
    "LanguageModel",
    "ResNet18",
    "build",
    "decoder_sharding_rules",
    "functional",
    "language_model",
]

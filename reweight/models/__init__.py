"""Small networks that the experiments share, and their functional form: parameters in, logits out."""

from reweight.models.build import MODELS, build
from reweight.models.functional import ApplyFn, Functional, functional
from reweight.models.nets import MLP, ConvNet
from reweight.models.resnet import ResNet18

__all__ = ["MLP", "MODELS", "ApplyFn", "ConvNet", "Functional", "ResNet18", "build", "functional"]

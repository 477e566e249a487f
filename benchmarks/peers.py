"""What others offer: MONAI's, nnU-Net's and torchvision's networks, MONAI's and torchvision's data pipelines.

The pipelines are used as their documentation says and do the work of ours: the same slices or images, a rotation,
scaling, shift and flip, and a change of contrast and brightness of each sample.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from benchmarks.pipeline import Setting, open_store, ours
from benchmarks.predecessor import endless
from benchmarks.timing import Batch, Loop
from datasets.augment import Augmentation, ImageAugmentation
from datasets.images import root
from datasets.parallel import cores


def basic_unet(n: int) -> nn.Module:
    """MONAI's U-Net (Falk 2019, 10.1038/s41592-018-0261-2)."""
    from monai.networks.nets import BasicUNet

    return BasicUNet(2, 4, 3, features=(n, n, 2 * n, 4 * n, 8 * n, n))


def attention_unet(n: int) -> nn.Module:
    """MONAI's attention U-Net (Oktay 2018, arXiv 1804.03999)."""
    from monai.networks.nets import AttentionUnet

    return AttentionUnet(2, 4, 3, channels=[n * 2**level for level in range(5)], strides=[2] * 4)


def segresnet(n: int) -> nn.Module:
    """MONAI's SegResNet (Myronenko 2018, arXiv 1810.11654); n is a multiple of 8."""
    from monai.networks.nets import SegResNet

    return SegResNet(2, init_filters=n, in_channels=4, out_channels=3)


def nnunet(n: int) -> nn.Module:
    """The 2-D network of nnU-Net (Isensee 2021, 10.1038/s41592-020-01008-z) with five stages."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return PlainConvUNet(
        4, 5, [n * 2**level for level in range(5)], nn.Conv2d, 3, [1, 2, 2, 2, 2], 2, 3, 2, conv_bias=True,
        norm_op=nn.InstanceNorm2d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    )  # fmt: skip


SEGMENTATION: dict[str, Callable[[int], nn.Module]] = {
    "MONAI BasicUNet": basic_unet, "MONAI AttentionUnet": attention_unet, "MONAI SegResNet": segresnet,
    "nnU-Net's PlainConvUNet": nnunet,
}  # fmt: skip
CLASSIFICATION = ("vgg16", "alexnet")  # those that torchvision has, too
WORKERS = min(cores(), 8)


def segmentation_network(name: str, setting: Setting) -> nn.Module:
    """One of `SEGMENTATION` in the width of the setting."""
    return SEGMENTATION[name](setting.n_filters)


def torchvision_network(setting: Setting) -> nn.Module:
    """torchvision's namesake of the setting's model."""
    from torchvision import models

    return models.get_model(setting.model, weights=None, num_classes=4)


def monai_batches(setting: Setting) -> Iterator[Batch]:
    """CacheDataset and ThreadDataLoader: all slices in memory, changed one by one in a thread."""
    from monai import transforms
    from monai.data import CacheDataset, ThreadDataLoader

    how, both = Augmentation(), ["image", "label"]
    store, rows = open_store(setting)
    turn, shift = np.deg2rad(how.rotation), [how.shift * side / 2 for side in setting.window]
    change = transforms.Compose([
        transforms.EnsureTyped(both),
        transforms.RandAffined(both, prob=1.0, rotate_range=turn, scale_range=(how.scale, how.scale),
                               translate_range=shift, mode=("bilinear", "nearest"), padding_mode="zeros"),
        transforms.RandFlipd(both, prob=0.5, spatial_axis=0),
        transforms.RandScaleIntensityd("image", factors=how.contrast, prob=1.0, channel_wise=True),
        transforms.RandShiftIntensityd("image", offsets=how.brightness, prob=1.0, channel_wise=True),
        transforms.RandAdjustContrastd("image", gamma=(1 - how.gamma, 1 + how.gamma), prob=1.0),
    ])  # fmt: skip
    samples = [{"image": store.images[row].astype(np.float32), "label": store.targets[row][None].copy()}
               for row in rows]  # fmt: skip
    data = CacheDataset(samples, change, progress=False)
    for batch in endless(ThreadDataLoader(data, batch_size=setting.batch_size, shuffle=True, num_workers=0)):
        images, labels = (batch[name].as_tensor().to(setting.device, non_blocking=True) for name in both)
        yield images, labels[:, 0]


def torchvision_batches(setting: Setting) -> Iterator[Batch]:
    """ImageFolder and the transforms of version 2, in loader workers."""
    from torch.utils.data import DataLoader
    from torchvision import datasets
    from torchvision.transforms import v2

    how = ImageAugmentation()
    change = v2.Compose([
        v2.ToImage(), v2.Resize((setting.image_size, setting.image_size)), v2.RandomHorizontalFlip(),
        v2.RandomAffine(how.rotation, (how.shift, how.shift), (1 - how.scale, 1 + how.scale)),
        v2.ColorJitter(how.brightness, how.contrast),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3),
    ])  # fmt: skip
    data = datasets.ImageFolder(str(root(setting.data) / "Training"), change)
    pinned = setting.device.type == "cuda"
    loader = DataLoader(data, setting.batch_size, True, num_workers=WORKERS, persistent_workers=True, pin_memory=pinned)
    for images, labels in endless(loader):
        yield images.to(setting.device, non_blocking=True), labels.to(setting.device, non_blocking=True)


def torchvision_pipeline(setting: Setting) -> Loop:
    """These batches around our network; each worker reads two ahead."""
    return ours(setting, data=torchvision_batches)._replace(lead=2 * WORKERS)

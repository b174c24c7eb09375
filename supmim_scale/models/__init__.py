"""The method in torch alone: encoder, decoder, masks, targets and the joint step.

Shape suffixes, used throughout the package:

    B images of a micro-batch    C H W channels, height, width
    T tokens                     N patches of an image
    V visible patches            M masked patches
    P values or codes a patch    D encoder width
    E decoder width              K classes
    L labels of an image, padded with -1

`images_BCHW` is a tensor of shape (B, C, H, W).
"""

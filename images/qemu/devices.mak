# The machine and the devices of our guests (vmm/vmm-qemu/src/arguments.rs).
# No guest uses Q35: QEMU does not link without a PC.
CONFIG_PCI_DEVICES=n
CONFIG_Q35=y
CONFIG_MICROVM=y
CONFIG_VIRTIO_BLK=y
CONFIG_VIRTIO_NET=y
CONFIG_VIRTIO_SERIAL=y

#!/bin/sh
# Called by mmdebstrap before the packages beyond the essential ones are installed, with the new system's folder: an
# initramfs with only the modules that the guest needs, which is made quickly, and unpacked quickly under emulation.
set -eu
root=$1
mkdir -p "$root/etc/initramfs-tools/conf.d" "$root/usr/share/initramfs-tools/modules.d"
echo MODULES=list > "$root/etc/initramfs-tools/conf.d/kbridge"
printf 'virtio_pci\nvirtio_blk\next4\n' > "$root/usr/share/initramfs-tools/modules.d/kbridge"

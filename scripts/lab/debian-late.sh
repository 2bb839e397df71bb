#!/bin/sh
# Called by mmdebstrap when all packages are installed, with the new system's folder: what the guest is to be, its second
# initramfs, and no unit that only waits for what a test guest does not have.
set -eu
root=$1
release=$(basename "$root"/lib/modules/*)

echo debian > "$root/etc/hostname"
echo '127.0.0.1 localhost debian' > "$root/etc/hosts"
echo '/dev/vda1 / ext4 errors=remount-ro 0 1' > "$root/etc/fstab"
# A system that was booted before: no questions and no presets of a first boot.
echo 6b627269646765006b62726964676500 > "$root/etc/machine-id"

mkdir -p "$root/etc/dracut.conf.d" "$root/boot/grub"
cat > "$root/etc/dracut.conf.d/kbridge.conf" <<'CONF'
hostonly=no
dracutmodules=" bash systemd systemd-initrd dracut-systemd base fs-lib rootfs-block udev-rules kernel-modules shutdown "
drivers=" virtio_pci virtio_blk ext4 "
compress=gzip
CONF
chroot "$root" dracut --quiet --force /boot/initrd-dracut.img "$release"

for unit in \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    systemd-hwdb-update.service systemd-binfmt.service systemd-pstore.service getty@tty1.service \
    systemd-update-utmp.service
do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done

ln -s "vmlinuz-$release" "$root/boot/vmlinuz"
ln -s "initrd.img-$release" "$root/boot/initrd.img"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/i18n

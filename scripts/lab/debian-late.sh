#!/bin/sh
# Called by mmdebstrap when all packages are installed, with the new system's folder: what the guest is to be, its second
# initramfs, and no unit that only waits for what a test guest does not have.
set -eu
root=$1
release=$(basename "$root"/lib/modules/*)

echo debian > "$root/etc/hostname"
echo '127.0.0.1 localhost debian' > "$root/etc/hosts"
echo '/dev/vda1 / ext4 errors=remount-ro 0 0' > "$root/etc/fstab"

mkdir -p "$root/etc/dracut.conf.d" "$root/boot/grub"
cat > "$root/etc/dracut.conf.d/kbridge.conf" <<'CONF'
hostonly=no
dracutmodules=" bash systemd systemd-initrd dracut-systemd base fs-lib rootfs-block udev-rules kernel-modules shutdown "
drivers=" virtio_pci virtio_blk ext4 "
compress=gzip
CONF
chroot "$root" dracut --quiet --force /boot/initrd-dracut.img "$release"

# Each of these starts a process or waits for a device, which takes a third of a second and more under emulation.
for unit in \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    systemd-tmpfiles-clean.timer getty@tty1.service getty-static.service systemd-binfmt.service \
    proc-sys-fs-binfmt_misc.automount systemd-pstore.service systemd-random-seed.service systemd-sysctl.service \
    systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-journal-flush.service \
    systemd-machine-id-commit.service systemd-modules-load.service systemd-ask-password-console.path \
    systemd-ask-password-wall.path kmod-static-nodes.service modprobe@.service dev-hugepages.mount dev-mqueue.mount \
    sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount \
    systemd-fsckd.socket systemd-journald-audit.socket systemd-initctl.socket systemd-sysusers.service \
    systemd-tmpfiles-setup-dev.service dracut-shutdown.service
do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done

mkdir -p "$root/etc/systemd/system-generators"
for generator in bless-boot cryptsetup gpt-auto hibernate-resume integritysetup rc-local run system-update sysv veritysetup; do
    ln -sf /dev/null "$root/etc/systemd/system-generators/systemd-$generator-generator"
done

ln -s "vmlinuz-$release" "$root/boot/vmlinuz"
ln -s "initrd.img-$release" "$root/boot/initrd.img"
# Backups; one of them is a file that not even its owner may read, and whoever is not root cannot put it on a disk.
rm -f "$root"/etc/*-
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/i18n

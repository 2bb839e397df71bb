#!/bin/busybox sh
# The first process of a test guest that boots from a disk: it mounts the disk as the kernel's command line says and
# hands over to that system's own first process, with the words that the kernel passed on (`single`, …).
/bin/busybox --install -s /bin
export PATH=/bin

mount -t proc proc /proc
mount -t sysfs sysfs /sys
[ -c /dev/null ] || mount -t devtmpfs devtmpfs /dev

while read -r module; do
    insmod "/lib/modules/$module" || echo "initramfs: cannot load $module"
done < /lib/modules/load-order

root=
init=/sbin/init
mode=rw
for word in $(cat /proc/cmdline); do
    case "$word" in
        root=*) root=${word#root=} ;;
        init=*) init=${word#init=} ;;
        ro | rw) mode=$word ;;
    esac
done

count=0
while [ ! -b "$root" ]; do
    count=$((count + 1))
    if [ "$count" -gt 30 ]; then
        # As initramfs-tools says it.
        echo "ALERT!  $root does not exist.  Dropping to a shell!"
        setsid cttyhack sh
        break
    fi
    usleep 100000
done
mkdir -p /system
mount -t ext4 -o "$mode" "$root" /system || setsid cttyhack sh
for place in proc sys dev; do
    mount --move "/$place" "/system/$place"
done
exec switch_root -c /dev/console /system "$init" "$@"

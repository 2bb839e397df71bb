#!/bin/sh
# The first process of a test guest. `kbridge.tick=SECONDS` on the kernel's command line makes it print
# "tick 1", "tick 2", … on the console at that pace, so that a watcher sees whether the guest runs;
# `kbridge.modules=all` makes it load every module that it has.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root TERM=vt100

mount -t proc proc /proc
mount -t sysfs sysfs /sys
[ -c /dev/null ] || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /tmp /run
mount -t devpts devpts /dev/pts 2>/dev/null
mount -t tmpfs tmpfs /tmp
mount -t debugfs debugfs /sys/kernel/debug

load() {
    while read -r module; do
        insmod "/lib/modules/$module" || echo "kbridge-guest: cannot load $module"
    done < "/lib/modules/$1"
}
load load-order
case " $(cat /proc/cmdline) " in *" kbridge.modules=all "*) load load-more ;; esac

echo 1 > /proc/sys/kernel/sysrq
hostname "$(cat /etc/hostname)"
ifconfig lo 127.0.0.1 up 2>/dev/null

# Processes of several kinds, for debuggers to list: asleep, waiting for a pipe, waiting for a socket.
sleep 100000000 &
mkfifo /tmp/fifo && cat /tmp/fifo &
syslogd -n -O /tmp/messages &

tick=
for word in $(cat /proc/cmdline); do
    case "$word" in kbridge.tick=*) tick=${word#kbridge.tick=} ;; esac
done
if [ -n "$tick" ]; then
    (count=0; while :; do count=$((count + 1)); echo "tick $count"; sleep "$tick"; done) &
fi

echo "kbridge-guest: ready ($(cat /etc/hostname), $(uname -r))"
cd /root || exit 1
# The kernel panics when its first process ends, so a shell that is left is followed by another.
while :; do
    setsid cttyhack sh -l
done

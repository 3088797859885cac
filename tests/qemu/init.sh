#!/busybox sh
# The guest's init: loads the modules, mounts the host's folders under their own paths, then starts the jobs that
# the host names on the second serial port, one line each.
/busybox mkdir -p /proc /sys /dev /run /tmp /root /exchange
/busybox mount -t proc proc /proc
/busybox mount -t sysfs sys /sys
/busybox mount -t devtmpfs dev /dev
/busybox mkdir -p /dev/shm
/busybox mount -t tmpfs shm /dev/shm
/busybox mount -t tmpfs tmp /tmp
/busybox chmod 1777 /tmp /dev/shm
/busybox chmod 755 /root  # an interpreter may be below it, and users other than root run it
exec </dev/ttyS0 >/dev/ttyS0 2>&1
for module in /modules/*; do /busybox insmod "$module"; done
/busybox mount -t cgroup2 cgroup /sys/fs/cgroup
while read -r tag options path; do
    /busybox mkdir -p "$path"
    /busybox mount -t 9p -o "trans=virtio,version=9p2000.L,msize=524288,$options" "$tag" "$path" || echo "no $path"
done </shares
/busybox ip link set lo up
/busybox hostname guest
/busybox stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
echo ready >&3
while read -r job <&3; do
    (
        cd "/exchange/$job" || exit
        exec </dev/null >out 2>err 3>&-
        /busybox setsid /bin/sh ./command &
        echo $! >pid
        wait $!
        echo $? >ended.part
        /busybox mv ended.part ended
    ) &
done

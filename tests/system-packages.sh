#!/bin/sh
# Installs what the tests need of the system, where we may: FUSE and loop devices for the real slow disks,
# iostat to compare with, a compiler for the stand-in of NVML, openssl for certificates, smartctl and QEMU for a real
# failing disk, fio and fincore to measure storage with, file systems that do not read directly, Alertmanager,
# node for Grafana's grammar of TraceQL. Without root, or elsewhere than on Debian, those tests are skipped and say why.
missing=""
command -v fusermount3 >/dev/null || missing="$missing fuse3"
command -v iostat >/dev/null || missing="$missing sysstat"
command -v mkfs.ext4 >/dev/null || missing="$missing e2fsprogs"
command -v losetup >/dev/null || missing="$missing mount"
command -v gcc >/dev/null || missing="$missing gcc libc6-dev"
command -v openssl >/dev/null || missing="$missing openssl"
command -v smartctl >/dev/null || missing="$missing smartmontools"
command -v qemu-system-x86_64 >/dev/null || missing="$missing qemu-system-x86"
{ command -v busybox && ! ldd "$(command -v busybox)"; } >/dev/null 2>&1 || missing="$missing busybox-static"
command -v systemd-analyze >/dev/null || missing="$missing systemd"
PATH="$PATH:/usr/sbin:/sbin" command -v visudo >/dev/null || missing="$missing sudo"
command -v fio >/dev/null || missing="$missing fio"
command -v fincore >/dev/null || missing="$missing util-linux-extra"
command -v mkfs.btrfs >/dev/null || missing="$missing btrfs-progs"
command -v mksquashfs >/dev/null || missing="$missing squashfs-tools"
{ command -v alertmanager || command -v prometheus-alertmanager; } >/dev/null || missing="$missing prometheus-alertmanager"
command -v node >/dev/null || missing="$missing nodejs"
command -v npm >/dev/null || missing="$missing npm"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing$missing" >&2
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null && exit 0
fi
echo "some tests will be skipped; they need:$missing" >&2
exit 0

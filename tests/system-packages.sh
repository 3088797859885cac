#!/bin/sh
# Installs what the tests need of the system, where we may: FUSE and loop devices for the real slow disks,
# iostat to compare with, a compiler for the stand-in of NVML, openssl for certificates. Without root, or elsewhere than on Debian, those tests are skipped and say why.
missing=""
command -v fusermount3 >/dev/null || missing="$missing fuse3"
command -v iostat >/dev/null || missing="$missing sysstat"
command -v mkfs.ext4 >/dev/null || missing="$missing e2fsprogs"
command -v losetup >/dev/null || missing="$missing mount"
command -v gcc >/dev/null || missing="$missing gcc libc6-dev"
command -v openssl >/dev/null || missing="$missing openssl"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing$missing" >&2
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null && exit 0
fi
echo "some tests will be skipped; they need:$missing" >&2
exit 0

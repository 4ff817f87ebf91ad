#!/bin/sh
# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
#
# The guest's first program, from the initial file system: makes the host's file system (read-only, changes in memory) its
# root and goes on there.
export PATH=/bin
fail() { echo "guest: $*"; poweroff -f; }
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module"; done </modules/order
over=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o $over,cache=loose,ro host /host || fail "the host's file system cannot be mounted"
mount -t tmpfs tmpfs /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work overlay /newroot ||
  fail "no overlay over the host's file system"
mkdir -p /newroot/mnt/job
mount -t 9p -o $over,cache=none job /newroot/mnt/job || fail "the job's folder cannot be mounted"
for dir in proc sys dev; do mount --move /$dir /newroot/$dir; done
exec switch_root /newroot /bin/sh /mnt/job/guest.sh

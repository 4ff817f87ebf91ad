#!/bin/sh
# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
#
# The guest's second program, in the host's userland: memory, file systems, then the job. Its status goes to the host.
. /mnt/job/environment
mount -t tmpfs tmpfs /run
# Not over /tmp: the checkout may lie there.
mkdir /run/tmp && export TMPDIR=/run/tmp
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
rm -rf /lib/modules && ln -s "$PEGAFLOW_VM_MODULES" /lib/modules
ulimit -l unlimited
ulimit -c 0
echo advise >/sys/kernel/mm/transparent_hugepage/shmem_enabled
for node in /sys/devices/system/node/node*; do
  echo "$PEGAFLOW_VM_HUGE_PAGES" >"$node/hugepages/hugepages-2048kB/nr_hugepages"
done
if [ "$PEGAFLOW_VM_HUGE_PAGES" != 0 ]; then
  mkdir -p "$PEGAFLOW_VM_HUGETLBFS"
  mount -t hugetlbfs -o pagesize=2M hugetlbfs "$PEGAFLOW_VM_HUGETLBFS"
fi
# Drives by their own names: the kernel numbers them as it finds them.
for drive in /sys/block/nvme*n1; do
  [ -e "$drive/device/serial" ] && ln -s "${drive##*/}" "/dev/$(tr -d ' ' <"$drive/device/serial")"
done
read -r up _ </proc/uptime
echo "guest: ready after $up s"
sh /mnt/job/command
status=$?
sync
echo $status >/mnt/job/status
echo "guest: done"
busybox poweroff -f

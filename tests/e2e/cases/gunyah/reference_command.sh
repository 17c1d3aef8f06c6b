# The command that people type on the open build: eight vCPUs, 256 MiB, root on a virtio disk, driver of generation A.
gunyah A
disk root.img
cmdline="$cmdline root=/dev/vda rw"
guest <<'END'
nproc
grep ' / ' /proc/mounts
ls -1 /proc/device-tree/hypervisor
echo written >/file && sync
END
boot --cpus 8 --accel gunyah --device virtio_blk,disk=root.img
expect_status 0
expect_console '^8$'
expect_console '^/dev/vda / ext4 rw'
expect_console '^bell-1@'
e2fsck -fn root.img
left_nothing

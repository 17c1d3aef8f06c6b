# A file written and synced is there at the next boot, and the file system is clean after power-off.
disk root.img
cmdline="$cmdline root=/dev/vda rw"
guest <<'EOF'
echo "kept by the disk" >/kept
sync
mount -o remount,ro /
EOF
boot --device virtio_blk,disk=root.img
expect_status 0
e2fsck -fn root.img
guest <<'EOF'
cat /kept
EOF
boot --device virtio_blk,disk=root.img
expect_status 0
expect_console '^kept by the disk$'

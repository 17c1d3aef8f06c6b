# The root is a virtio disk mounted for writing, and its own init starts.
disk root.img
cmdline="$cmdline root=/dev/vda rw"
guest <<'EOF'
grep ' / ' /proc/mounts
echo written >/file && cat /file
EOF
boot --device virtio_blk,disk=root.img
expect_status 0
expect_console '^/dev/vda / ext4 rw'
expect_console '^written$'

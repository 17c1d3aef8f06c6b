# A console in a file on a full disk: gvmm says so once, and the guest goes on.
cmdline="$cmdline modules=virtio_console"
mkdir full
mount -t tmpfs -o size=64k tmpfs full
guest <<'END'
exec 3<>/dev/hvc0
stty raw <&3
seq 40000 | cat >&3
echo "gone on"
END
boot --device virtio_console,console=file:full/log
size=$(wc -c <full/log)
umount full
expect_status 0
expect_console '^gone on'
[ "$size" -gt 0 ] && [ "$size" -le 65536 ] || fail "the file has $size bytes"
[ "$(grep -c 'console output is lost' gvmm.log)" = 1 ] || fail "it is not said once that output is lost"

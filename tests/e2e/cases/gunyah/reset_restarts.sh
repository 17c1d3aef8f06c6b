# A guest that resets is built anew in the same process; its disk keeps what was written.
gunyah A
disk root.img
cmdline="$cmdline root=/dev/vda rw"
guest <<'END'
cut -d. -f1 /proc/uptime
if [ -e /been-here ]; then
    echo second life
    poweroff -f
fi
touch /been-here && sync
reboot -f
END
boot --accel gunyah --on-reset restart --device virtio_blk,disk=root.img
expect_status 0
expect_console '^second life$'
# Both lives ran the test in their first minute.
[ "$(grep -Ec '^[0-9]{1,2}$' console.log)" = 2 ] || fail "uptimes: $(grep -E '^[0-9]+$' console.log)"
e2fsck -fn root.img
left_nothing

# A storage daemon that dies with a request in flight, of which it kept no notes: the guest, the log and the statistics are told.
disk data.img 32
guest <<'EOF'
device=$(basename "$(readlink /sys/block/vda/device)")
status() {
    cat "/sys/bus/virtio/devices/$device/status"
}
changes() {
    awk -v name="$device-config" '$NF == name { print $2 }' /proc/interrupts
}
echo "status $(status), $(changes) changes"
echo "the disk rests"
read -r go
dd if=/dev/vda of=/dev/null bs=4096 count=1 iflag=direct &
until read -r reads writes </sys/block/vda/inflight && [ "$reads" = 1 ]; do usleep 20000; done
echo "in flight"
until [ "$(status)" != 0x0000000f ]; do usleep 20000; done
echo "status $(status), $(changes) changes"
poweroff -f
EOF
mkfifo keys
storage_daemon data.img
keyboard=keys start --stats stats.json --device vhost-user,type=blk,socket=disk.sock,id=disk
exec 3>keys
await 'the disk rests'
kill -STOP "$back_end"
echo go >&3
await 'in flight'
kill -9 "$back_end"
wait "$back_end" || :
finish
# Powered off, but a device had failed on the way.
expect_status 5
expect_console '^status 0x0000000f, 0 changes'
# DEVICE_NEEDS_RESET is 0x40, and a change of the configuration tells of it.
expect_console '^status 0x0000004f, 1 changes'
expect_message 'disk.*lost with requests in flight in queues \[0\].*the driver has to reset the device'
expect_stats '"resets_needed": 1'
expect_stats '"connected": 0'

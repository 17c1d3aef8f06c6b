# Under Gunyah each message interrupt has a doorbell of its own, whose irqfd is connected when the guest asks for it;
# and there is no exit for a request.
gunyah A
disk data.img 32
guest <<'END'
guestio verify /dev/vda --processes 4 --requests 300
cat /proc/interrupts
ls -1 /proc/device-tree/hypervisor
END
boot --cpus 2 --accel gunyah --no-defaults --device pl011 --stats stats.json \
    --device virtio_blk,disk=data.img,queues=2
expect_status 0
cat stats.json
expect_console '^verified 4 processes'
expect_console 'MSI.*virtio0-req\.1$'
# The lines of PL011 and disk, and a message for the configuration and for each queue.
for bell in 1 2 3 4 5; do
    expect_console "^bell-$bell@"
done
accesses=$(awk '/"plugin": "virtio_blk"/ { disk = 1 } disk && /"register_(reads|writes)"/ { sum += $2 }
    disk && /}/ { print sum; exit }' stats.json)
# The kernel's probing of the disk takes some; the 1200 requests take none.
[ "$accesses" -lt 600 ] || fail "$accesses register accesses"
left_nothing

# A disk in a sandboxed process of its own that is killed again and again: all is read back as written.
requests=${GVMM_REQUESTS:-1000}
disk data.img 32
limit=900
guest <<EOF
guestio verify /dev/vda --processes 4 --requests $requests
dmesg | grep -i 'i/o error' && echo "the guest complains"
EOF
start --stats stats.json --device virtio_blk,disk=data.img,isolate=on,id=disk --device virtio_rng,isolate=required
await '@begin'
while kill -0 "$vmm" 2>/dev/null; do
    usleep 500000
    # Whichever are there: the disk's process, the entropy's, or both.
    kill -9 $(pidof gvmm-device) 2>/dev/null || :
done
finish
expect_status 0
expect_console '^verified 4 processes'
no_console 'the guest complains'
lost=$(stat_of connections_lost)
echo "lost $lost times"
[ "$lost" -ge 3 ] || fail "the process was lost $lost times: not enough to show anything"
[ -z "$(pidof gvmm-device)" ] || fail "a process is left over"

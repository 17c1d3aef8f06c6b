# gvmm-device is killed again and again under writes: the guest sees no error, and all is read back as written.
requests=${GVMM_REQUESTS:-1500}
disk data.img 32
limit=900
guest <<EOF
guestio verify /dev/vda --processes 4 --requests $requests
dmesg | grep -i 'i/o error' && echo "the guest complains"
EOF
start --stats stats.json --device vhost-user,type=blk,socket=disk.sock,id=disk
kills=0
while kill -0 "$vmm" 2>/dev/null; do
    back_end /gvmm/gvmm-device virtio_blk,disk=data.img --socket-path disk.sock
    for tenth in 1 2 3 4 5 6 7 8 9 10; do
        kill -0 "$vmm" 2>/dev/null && usleep 100000
    done
    # Once the machine has gone, the back end leaves by itself, with status 0.
    kill -9 "$back_end" 2>/dev/null || :
    status=0
    wait "$back_end" || status=$?
    case $status in
    0) ;;
    137) kills=$((kills + 1)) ;;
    *) fail "the back end ended by itself with status $status" ;;
    esac
done
finish
expect_status 0
expect_console '^verified 4 processes'
no_console 'the guest complains'
echo "killed $kills times"
lost=$(stat_of connections_lost)
[ "$lost" -ge 3 ] || fail "the back end was lost $lost times: not enough to show anything"

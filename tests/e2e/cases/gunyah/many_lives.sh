# After many resets the process holds no more descriptors, threads and mappings than after the first.
gunyah A
lives=${GVMM_LIVES:-3}
limit=$((60 + lives * 30))
disk root.img
cmdline="$cmdline root=/dev/vda rw"
guest <<END
life=\$((\$(cat /lives 2>/dev/null || echo 0) + 1))
echo \$life >/lives && sync
echo "life \$life"
case \$life in
2) sleep 3 ;;
$lives) sleep 3 && poweroff -f ;;
esac
reboot -f
END
held() {
    await "^life $1.\$"
    sleep 1
    process=/proc/$(pidof gvmm)
    echo "$(ls "$process/fd" | wc -l) descriptors, $(ls "$process/task" | wc -l) threads, $(wc -l <"$process/maps") mappings"
}
start --accel gunyah --on-reset restart --device virtio_blk,disk=root.img
early=$(held 2)
late=$(held "$lives")
finish
echo "life 2: $early; life $lives: $late"
expect_status 0
[ "$early" = "$late" ] || fail "something is left over of each life"
left_nothing

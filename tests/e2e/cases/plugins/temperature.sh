# Linux's own drivers of the bus and the sensor read the host's temperature: in process, isolated, and under QEMU.
full_kernel i2c_virtio lm75
guest <<'END'
bus=$(echo /sys/bus/i2c/devices/i2c-*)
[ -d "$bus" ] || exit
cat "$bus/name"
echo lm75 0x49 >"$bus/new_device"
for round in 1 2; do
    echo "temperature $(cat /sys/class/hwmon/hwmon0/temp1_input)"
    [ $round = 2 ] || echo cooler
    until [ "$(cat /sys/class/hwmon/hwmon0/temp1_input)" -lt 0 ]; do
        usleep 50000
    done
done
echo 30000 >/sys/class/hwmon/hwmon0/temp1_max
echo "limit $(cat /sys/class/hwmon/hwmon0/temp1_max)"
echo lm75 0x4a >"$bus/new_device"
ls "$bus"/*-004a/hwmon 2>/dev/null && echo "a sensor that is not there"
END
for place in transport=mmio,isolate=off transport=pci,isolate=required; do
    echo 41700 >temp
    start --device "/bed/lib/libvirtio_i2c.so,file=$PWD/temp,address=0x49,$place"
    await '^cooler'
    echo -3000 >temp
    finish
    expect_status 0
    expect_console 'i2c_virtio at virtio bus'
    expect_console '^temperature 41500'
    expect_console '^temperature -3000'
    expect_console '^limit 30000'
    no_console 'a sensor that is not there'
done
# The same library as a back end of QEMU's.
back_end /gvmm/gvmm-device "/bed/lib/libvirtio_i2c.so,file=$PWD/temp,address=0x49" --socket-path i2c.sock
qemu -object "memory-backend-memfd,id=mem,size=$memory,share=on" -machine memory-backend=mem \
    -chardev socket,id=i2c,path=i2c.sock -device vhost-user-i2c-pci,chardev=i2c
expect_status 0
expect_console '^temperature -3000'
expect_console '^limit 30000'

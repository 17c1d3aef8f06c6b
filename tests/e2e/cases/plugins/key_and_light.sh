# A program of the host presses a key at a line of the PL061, with the guest's own driver, and sees the light that the guest makes.
guest <<'EOF'
chip=$(echo /sys/class/gpio/gpiochip*)
echo "lines $(cat "$chip/ngpio")"
base=$(cat "$chip/base")
key=/sys/class/gpio/gpio$((base + 3))
light=/sys/class/gpio/gpio$((base + 5))
echo $((base + 3)) >/sys/class/gpio/export
echo $((base + 5)) >/sys/class/gpio/export
echo rising >"$key/edge"
echo "key $(cat "$key/value"), interrupts $(awk '/gpiolib/ { print $2 }' /proc/interrupts)"
echo out >"$light/direction"
echo 1 >"$light/value"
until [ "$(cat "$key/value")" = 1 ]; do
    usleep 20000
done
echo "key 1, interrupts $(awk '/gpiolib/ { print $2 }' /proc/interrupts)"
echo 0 >"$light/value"
EOF
start --device /bed/lib/libpl061.so,socket=gpio.sock
# Before the guest runs: who comes later is told of lines as they are then.
until [ -S gpio.sock ]; do
    kill -0 "$vmm" 2>/dev/null || { finish; fail "gvmm ended before its socket was there"; }
    usleep 20000
done
guestio socket gpio.sock --log lines --then 'wait:7 in 0' --then 'wait:5 out 1' --then 'type:set 3 1\n' \
    --then 'wait:3 in 1' --then 'wait:5 out 0' --timeout "$limit"
finish
expect_status 0
expect_console '^lines 8$'
expect_console '^key 0, interrupts 0$'
expect_console '^key 1, interrupts 1$'
[ ! -e gpio.sock ] || fail "the socket is left over"

# Linux's own drivers of keys and lights at the lines of the PL061: a program of the host sees the light and presses the power key.
full_kernel evdev gpio_keys leds_gpio
guest <<'EOF'
echo "keyboard $(cat /sys/class/input/event*/device/name)"
# Open before the key is pressed: nobody is told of events that have been.
exec 3</dev/input/event0
echo 1 >/sys/class/leds/light-5/brightness
# Behind two times of 8 bytes: type, code, value (Linux, include/uapi/linux/input.h).
echo "event $(dd <&3 bs=24 count=1 2>/dev/null | od -An -v -tx2 -j16)"
echo 0 >/sys/class/leds/light-5/brightness
EOF
start --device /bed/lib/libpl061.so,socket=gpio.sock,power-key=3,lights=0x20
await '@begin'
guestio socket gpio.sock --log lines --then 'wait:5 out 1' --then 'type:set 3 1\n' --then 'wait:3 in 1' \
    --then 'wait:5 out 0' --timeout "$limit"
finish
expect_status 0
expect_console '^keyboard gpio-keys'
# EV_KEY, KEY_POWER, pressed.
expect_console '^event +0001 0074 0001 0000$'

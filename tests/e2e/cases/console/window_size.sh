# The guest sees the size of the terminal's window, and its changes.
cmdline='quiet panic=-1'
guest <<'END'
echo ready
until [ "$(stty size)" = "43 132" ]; do
    usleep 100000
done
echo resized
END
terminal 'wait:ready' 'resize:132x43' 'wait:resized' --
expect_status 0

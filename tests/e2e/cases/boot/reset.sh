# A guest that resets itself ends gvmm with the exit code for that.
guest <<'EOF'
reboot -f
EOF
boot
expect_status 3

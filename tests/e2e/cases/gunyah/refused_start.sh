# A start that is refused twice for the moment succeeds, with memory loaded anew.
gunyah A INJECT=refuse-start=2
guest <<'END'
echo up
END
boot --accel gunyah
expect_status 0
expect_console '^up$'
expect_message 'start refused, which may pass'
left_nothing

//! Plugins that misbehave, one an example. Each says in its first line what it does wrong.

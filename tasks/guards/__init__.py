"""Run-time guards of a vetted model: fitted in the sandbox, signed by the vetter, and fetched by whoever serves it."""

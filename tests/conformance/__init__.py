"""Every public function against the same checks, each from one small case that it registers in `cases/`."""

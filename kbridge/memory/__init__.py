"""Where guest memory is read from."""

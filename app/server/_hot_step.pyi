from app.server.hot_step import FastRequest as FastRequest
from app.server.hot_step import answers as answers
from app.server.hot_step import go_through as go_through
from app.server.hot_step import split_head as split_head

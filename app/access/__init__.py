"""Who may do what. Knows neither HTTP nor the kernel's objects."""

"""Networks: students, teachers, routers, and the mixtures, ensembles and cascades made of them."""
